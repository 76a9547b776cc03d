// Package warehouse ships what is paid: it makes one shipment of each completed order, with its pick list, and says so.
//
// It promises one shipment for each order that completed, and one [event.ShipmentCreated] for each shipment. The shipment,
// its pick list, the event and the inbox's row commit together; the table's UNIQUE (order_id) is the second wall. The
// shipments of one user are published in the order in which their orders completed.
//
// Nobody walks through shelves in this system, so a shipment is handed over the moment it is made. A pick list is sorted
// the way a person would walk: by bin, then SKU.
package warehouse
